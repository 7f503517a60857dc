"""Sources of images: folders, tables, archives, parquet files and demo sets, with their classes and splits."""
