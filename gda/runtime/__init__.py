"""What every process needs: files that others wrote, disks that fail, signals, exit codes, processes side by side and together."""
