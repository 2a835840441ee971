"""The worker: claims jobs, runs tasks, and holds all knowledge of models and documents."""
