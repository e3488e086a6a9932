"""What each latent means: where it fires, what it does, a description, a score, a page to read it on."""
