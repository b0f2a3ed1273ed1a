"""What an extension promises."""
