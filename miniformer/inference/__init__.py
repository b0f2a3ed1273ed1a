"""Using a trained model: loading it, writing text, predicting for records, and measuring it."""
