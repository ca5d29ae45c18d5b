"""How weights are updated and at which rates; and named recipes, a TOML file each."""
