"""What every other part uses: errors, values, safe text, whole files."""
