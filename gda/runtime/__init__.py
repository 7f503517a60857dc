"""What every process needs: untrusted files, failing disks, signals, exit codes, parallel workers and process groups."""
