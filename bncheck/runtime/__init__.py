"""The torch floor: loads the user's model and data by their word, watches every norm call, and leaves no trace.

Imported only where the user asked for a model to be run.
"""
