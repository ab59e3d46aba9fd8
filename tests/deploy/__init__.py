"""What is deployed: the image, the compose files, nginx's files and Kubernetes' manifests, without any of those engines."""
