"""saeflow: a Snakemake workflow for sparse-autoencoder interpretability."""
