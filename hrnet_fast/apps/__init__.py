"""What people do with a network: segment pictures, find poses; what these share is in pictures, networks and pipeline."""
