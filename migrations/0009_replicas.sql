-- Which nodes hold how many of the files, as the document's alternates say: JSON text, made with the document.
ALTER TABLE fedstac.record ADD COLUMN replicas text;
