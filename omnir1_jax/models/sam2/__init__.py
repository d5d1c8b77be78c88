"""SAM 2.1: boxes on some frames to masks on all of them."""

from omnir1_jax.models.sam2.config import SIZES as SIZES
from omnir1_jax.models.sam2.config import HieraConfig as HieraConfig
from omnir1_jax.models.sam2.config import Sam2Config as Sam2Config
from omnir1_jax.models.sam2.decoder import Masks as Masks
from omnir1_jax.models.sam2.hf_config import from_hf as from_hf
from omnir1_jax.models.sam2.hf_config import read_config as read_config
from omnir1_jax.models.sam2.hf_config import to_hf as to_hf
from omnir1_jax.models.sam2.image import ImageMasks as ImageMasks
from omnir1_jax.models.sam2.image import segment_image as segment_image
from omnir1_jax.models.sam2.model import Sam2 as Sam2
from omnir1_jax.models.sam2.model import abstract_params as abstract_params
from omnir1_jax.models.sam2.model import init as init
from omnir1_jax.models.sam2.model import place as place
from omnir1_jax.models.sam2.pixels import fill_holes as fill_holes
from omnir1_jax.models.sam2.pixels import lift_masks as lift_masks
from omnir1_jax.models.sam2.pixels import preprocess as preprocess
from omnir1_jax.models.sam2.video import Tracks as Tracks
from omnir1_jax.models.sam2.video import encode_frames as encode_frames
from omnir1_jax.models.sam2.video import segment_video as segment_video
from omnir1_jax.models.sam2.video import track as track
from omnir1_jax.models.sam2.video import unroll as unroll
from omnir1_jax.models.sam2.weights import export as export
from omnir1_jax.models.sam2.weights import load as load
