"""What has been acknowledged is kept, exactly once, whatever happens to processes, databases and disks: README.md."""
