"""What an agent run is made of: its conversation, the calls of its tools, its reserves."""
