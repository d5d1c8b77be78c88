"""What a person sees of a run: its log, pictures of clips, pages that open anywhere, videos. Host only, numpy."""
