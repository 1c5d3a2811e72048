"""The layers, a family a file; users find them at the package's top."""
