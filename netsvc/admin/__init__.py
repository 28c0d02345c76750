"""The admin address: a page, the metrics and an API over HTTP, of a running process."""
