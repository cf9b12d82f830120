"""What makes a retraining cycle safe; it knows nothing of stems. The three scripts use it."""
