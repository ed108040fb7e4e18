//! Layers: applies them to directories and makes them from directories.
