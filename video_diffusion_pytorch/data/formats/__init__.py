"""What each format of video files is made of, read and written."""
