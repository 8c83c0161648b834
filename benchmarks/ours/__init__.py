"""What is measured of Baton; one file for each measurement, each with the struct of what it found."""
