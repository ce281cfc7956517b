"""What the proxy tells the outside of itself."""
