"""A run's log, pictures of clips, standalone HTML pages, videos. Host only, numpy."""
