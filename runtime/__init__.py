"""Run and check a bundle with numpy and a backend; nothing here imports torch."""
