"""Document stores: documents that are compressed once, stored with their memories, and searched."""
