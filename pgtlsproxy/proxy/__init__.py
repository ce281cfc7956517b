"""The trio runtime, one file a stage; start reading at session.py."""
