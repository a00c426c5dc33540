"""One file per runner: preset of options with the reason of each, start-up checks, local start-up."""
