"""pgtlsproxy and its peers, measured side by side: `./dev bench`."""
