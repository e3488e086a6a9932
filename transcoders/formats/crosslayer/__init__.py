"""Cross-layer transcoders in other people's files, read a layer at a time, and ours in circuit-tracer's."""
