"""What is deployed: the image, compose, nginx and Kubernetes files, without any of those engines but nginx."""
