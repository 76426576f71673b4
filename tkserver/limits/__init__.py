"""How often an application may send, and how often an address may fail to say who it is."""
