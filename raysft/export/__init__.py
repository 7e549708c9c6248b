"""Release: checkpoints as folders that `transformers` and peft load, with cards made from the results, and the hub."""
