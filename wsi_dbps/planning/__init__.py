"""What a run will cost: memory and time measured on this device, and settings that fit."""
