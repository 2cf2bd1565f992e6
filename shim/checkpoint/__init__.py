"""How a snapshot is made: CRIU's dump, and what a worker has outside its memory."""
