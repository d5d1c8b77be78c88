"""Files and folders on a disk or in a bucket: read with one clear error, written atomically, owned and locked."""
