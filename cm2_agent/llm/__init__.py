"""Asking language models for anything but the policy's own words: which, how often, at what price. Apart because
judges, labelers, simulators and simulated users all ask."""
