PRAGMA application_id = 1852008532;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE account (
        key TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        password TEXT NOT NULL,
        made REAL NOT NULL,
        seen REAL NOT NULL
    ) STRICT;
INSERT INTO "account" VALUES('ann','Ann','$scrypt$ln=15,r=8,p=1$c2FsdA$aGFzaA',1795999400.0,1795999900.0);
CREATE TABLE marker (
        id INTEGER PRIMARY KEY,
        account TEXT NOT NULL,
        room TEXT NOT NULL,
        message INTEGER NOT NULL,
        UNIQUE (account, room)
    ) STRICT;
INSERT INTO "marker" VALUES(1,'ann','lobby',2);
CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        room TEXT NOT NULL,
        name TEXT NOT NULL,
        text TEXT NOT NULL,
        account TEXT NOT NULL,
        acted INTEGER NOT NULL,
        token TEXT
    ) STRICT;
INSERT INTO "message" VALUES(1,1796000000.0,'lobby','Ann','hello','ann',0,NULL);
INSERT INTO "message" VALUES(2,1796000001.0,'lobby','guest2','waves','',1,NULL);
INSERT INTO "message" VALUES(3,1796000002.0,'den','Ann','in here','ann',0,'t1');
INSERT INTO "message" VALUES(4,1796000003.0,'lobby','guest2','再见','',0,NULL);
CREATE TABLE room (
        key TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        made REAL NOT NULL,
        founder TEXT NOT NULL,
        operators TEXT NOT NULL,
        topic TEXT NOT NULL,
        topic_by TEXT NOT NULL,
        topic_time REAL NOT NULL,
        modes TEXT NOT NULL,
        bans TEXT NOT NULL
    ) STRICT;
INSERT INTO "room" VALUES('lobby','lobby',1795999000.0,'','[]','','',0.0,'[]','[]');
INSERT INTO "room" VALUES('den','Den',1795999500.5,'ann','["bob"]','a topic','Ann',1795999600.0,'["invite"]','[["address","192.0.2.7","ann",1795999700.0,1796999700.0,"spam"]]');
CREATE INDEX message_room ON message (room);
CREATE INDEX message_time ON message (time);
CREATE INDEX message_account ON message (account) WHERE account != '';
CREATE UNIQUE INDEX message_token ON message (room, token) WHERE token IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('message',4);
COMMIT;
