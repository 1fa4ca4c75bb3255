"""What shadow removal papers share: colour spaces, region metrics, the shadow model, triplets on disk."""
