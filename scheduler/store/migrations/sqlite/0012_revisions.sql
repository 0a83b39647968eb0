-- Records of what a machine does are numbered as they are taken, so that one that comes late does not replace a later one.
ALTER TABLE machines ADD COLUMN revision INTEGER NOT NULL DEFAULT 0 CHECK (revision >= 0);
