"""What is measured of packed, paged and cached sequences: problems, contenders, sections."""
