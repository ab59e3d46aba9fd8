"""The groups of settings, each of which switches a feature: `app.core.config` puts them together."""
