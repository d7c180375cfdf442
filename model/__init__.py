"""One training run of ResNet-9: config, data, net, optimiser, loop. Imports torch and data libraries only."""
