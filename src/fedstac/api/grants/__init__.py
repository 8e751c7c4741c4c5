"""The room of grants: who may have the files of controlled datasets."""
