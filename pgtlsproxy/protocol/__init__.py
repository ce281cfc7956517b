"""PostgreSQL's wire protocol: pure, sans-IO."""
