"""What every part of the library stands on: errors, files, places, tables, settings, devices, buffers."""
