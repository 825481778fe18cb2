"""What a network's numbers are worth: mIoU and AP on labelled images, for each way of computing it."""
