"""`sdrt serve` on many GPUs, as a Ray Serve application: see deploy/README.md."""
