"""The commands of `./scripts/errand`, a module per subject. Each has `register`, which names its commands."""
