import pathlib
import sys

import av
import numpy as np
import torch
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

folder, video, query = sys.argv[1:4]
kind = "".join(sys.argv[4:])  # toy_ for the toy's prompts
prompt = lambda name: pathlib.Path(f"omnir1_jax/systems/templates/{kind}{name}.txt").read_text().removesuffix("\n")

with av.open(video) as film:
    frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
seen = np.linspace(0, len(frames) - 1, min(24, len(frames))).astype(int)
fields = {"query": query, "duration": f"{len(seen) / 2:g}", "fps": "2"}
fields["example"] = '{"start_time": "00:00.50", "end_time": "00:01.00", "description": "..."}'
words = prompt("vos")
for field, value in fields.items():
    words = words.replace("{" + field + "}", value)

processor = Qwen2_5OmniProcessor.from_pretrained(folder)
model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, dtype="auto")
model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
content = [{"type": "video"}, {"type": "text", "text": words}]
messages = [{"role": "system", "content": prompt("system")}, {"role": "user", "content": content}]
cell = (processor.video_processor.patch_size * processor.video_processor.merge_size) ** 2
inputs = processor(
    text=[processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
    videos=[np.stack([frames[t] for t in seen])],
    videos_kwargs={"fps": 2.0, "size": {"shortest_edge": 4 * cell, "longest_edge": 128 * cell}},
    return_tensors="pt",
).to(model.device)
with torch.inference_mode():
    line = model.generate(**inputs, use_audio_in_video=False, do_sample=False, max_new_tokens=1024)
print(processor.tokenizer.decode(line[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
