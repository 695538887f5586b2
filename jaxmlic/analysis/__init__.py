"""What people look at: tables and pictures made from run folders and score files."""
