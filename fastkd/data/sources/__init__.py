"""Images from anywhere: folders, zips, and the files of well-known data sets."""
